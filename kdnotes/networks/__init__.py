"""Networks: building them, and reading what they compute on the way."""
