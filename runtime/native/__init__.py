"""C++ that is compiled for the machine it runs on, at its first use."""
