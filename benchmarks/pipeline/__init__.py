"""What Ray costs a run and brings it: one part of the report a file."""
