"""MLflow as a copy of the ledgers. Light to import: MLflow loads when a store is opened."""
