"""What is known about content: rights, tags, media types. Never the bytes."""
