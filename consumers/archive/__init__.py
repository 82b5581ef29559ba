"""The archive: every entry of the streams, once, in columnar tables that polars, DuckDB, pandas and Spark open."""
