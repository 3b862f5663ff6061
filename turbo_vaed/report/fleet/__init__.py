"""What an operator looks at: all customers on one page of a static site, and their metrics."""
