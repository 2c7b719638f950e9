"""Joint training of one classifier on several libraries."""
