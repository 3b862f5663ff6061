"""The ledger's database: how it is opened, what its tables are, and how they are migrated."""
