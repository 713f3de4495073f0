"""Who asks, and who may do what: users and passwords, our tokens, the policy, and the gate in front of the API."""
