"""A search as a report: what was tried, what came out, what it cost, and what the best model still gets wrong."""
