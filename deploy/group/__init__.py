"""A running group: started, asked, scaled, subscribed to."""
