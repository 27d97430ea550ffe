"""What the databases are asked, and how they find it."""
