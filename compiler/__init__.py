"""What decides: spec, capture, compile, sweep, query, report and the command line."""
