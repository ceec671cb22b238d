"""What people's files hold, as datasets: tables, folders, sentences."""
