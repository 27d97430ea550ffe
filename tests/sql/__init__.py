"""The statements that the databases execute, and their plans and costs."""
