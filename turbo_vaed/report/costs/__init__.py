"""Reports of costs: a statement for finance, a portfolio of all customers for ROI reviews."""
