"""The book: chapters and their parameters, running them, the site made of them."""
