"""PostgreSQL: its driver, its statements and its errors."""
