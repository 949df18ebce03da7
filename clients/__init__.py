"""What users run or import: everything here speaks HTTP and knows nothing of the server's own code."""
