"""A made-up market, and a broker that serves it over HTTP as Kiwoom does, faults included."""
