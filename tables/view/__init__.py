"""A run as a page in the browser, served from this machine or written as static files."""
