"""Regular expressions as sets of strings: with intersection, complement, emptiness and a way into a grammar's terminals."""
