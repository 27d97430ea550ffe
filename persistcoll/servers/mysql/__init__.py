"""MySQL and MariaDB: their driver, their statements and their errors."""
