"""The commands of `redif`: what each takes, and which function of the API or of a job it calls."""
