"""HTTP in, HTTP out: the endpoints of the distribution API and the signs of life."""
