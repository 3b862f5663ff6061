"""One self-contained HTML page per PoC run, for an engineer and a finance person: `collect` and
`page`. And pages of costs over runs and customers: `costs`. Nothing is imported with the package,
for a table of costs needs no pictures."""
