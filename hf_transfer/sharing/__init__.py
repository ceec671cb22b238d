"""A run for others: its folder, model card, report and repository on the Hub."""
