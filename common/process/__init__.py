"""What every service process is made of."""
