"""How a host's memory is counted and governed: stats."""
