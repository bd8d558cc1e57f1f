"""What a run logs, and the page that shows it."""
