"""The documentation site: pages, and the programs that make parts of them."""
