"""Reading data: tables, formats, filters, sequences."""
