"""SQL over a run: DuckDB with the views `masks` and `images`, and functions on masks."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import atexit
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakSet

import duckdb
import pyarrow as pa

from maskmill.model.errors import MaskmillError
from maskmill.pipeline.finished import Run
from maskmill.pipeline.parts import list_parts
from maskmill.pipeline.storage import LocalStorage
from maskmill.tables import functions

_open: WeakSet[duckdb.DuckDBPyConnection] = WeakSet()


class QueryError(MaskmillError):
    """A query that DuckDB cannot run."""


def query(run: Run, sql: str) -> duckdb.DuckDBPyRelation:
    """The result of `sql`, computed when it is read. Raises QueryError if it is not valid SQL that returns rows."""
    with query_errors():
        relation = connect(run).sql(sql)
    if relation is None:
        raise QueryError("the query returns no rows: give a SELECT")
    return relation


def read_rows(run: Run, sql: str, tables: Mapping[str, pa.Table]) -> pa.Table:
    """The rows of `sql`, which can also use `tables` by their names. Raises as `query` does."""
    with query_errors():
        connection = connect(run)
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(sql).to_arrow_table()


def connect(run: Run) -> duckdb.DuckDBPyConnection:
    """A connection to a database in memory with the views and functions. Raises StorageError and duckdb.Error."""
    spill = f"{tempfile.gettempdir()}/maskmill-duckdb-{os.getpid()}"  # DuckDB's default is the working directory
    connection = duckdb.connect(config={"temp_directory": spill})
    connection.execute("SET enable_progress_bar = false")  # DuckDB writes it to stdout
    _open.add(connection)
    for table in ("masks", "images"):
        if pattern := _local_files(run, table):
            connection.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{pattern}')")
        else:
            connection.register(table, getattr(run, table))
    functions.register(connection)
    return connection


@atexit.register
def _close_connections() -> None:
    """DuckDB prints memory leaks at exit if a connection with Python functions is still open."""
    for connection in list(_open):
        connection.close()


def _local_files(run: Run, table: str) -> str | None:
    """The parts of a table as a pattern for DuckDB's reader of local files; None if it cannot read them."""
    # DuckDB takes a backslash in a path for a slash, and refuses patterns without a file.
    if not isinstance(run.storage, LocalStorage) or "\\" in run.storage.uri or not list_parts(run.storage, table):
        return None
    root = re.sub(r"[\[*?]", r"[\g<0>]", str(run.storage.root))
    return f"{root}/{table}/part-*.parquet".replace("'", "''")


@contextmanager
def query_errors() -> Iterator[None]:
    """Converts errors of DuckDB to QueryError."""
    try:
        yield
    except duckdb.Error as error:
        text = str(error).partition("\n\nLINE ")[0].partition("occurred while executing the UDF: ")
        raise QueryError(f"query: {text[2].removeprefix('ValueError: ') or text[0]}") from error
