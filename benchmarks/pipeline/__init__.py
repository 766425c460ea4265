"""Measurements of what Ray costs and brings a run, one file for each part of the report."""
