"""What answers requests. Nothing in here knows a benchmark."""
