"""HTTP messages without sockets: targets, heads, whom to believe, errors as answers."""
