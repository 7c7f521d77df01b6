"""What runs inside a job; imports the standard library and torch alone."""
