"""The tables of the history, for SQLite and PostgreSQL. Times are UTC, seconds since 1970.

Rows are never changed. A row is named by what the log calls it, so that one that is read twice is stored once.
"""

from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from peoplecounter.common.errors import NO_INPUT, SOFTWARE, AppError

VERSION = 1  # of these tables
CONNECT_S = 3

metadata = MetaData()


def _key(name: str, kind: Any = Integer) -> Column:
    return Column(name, kind, primary_key=True, autoincrement=False)


Name = String(128)
version = Table("peoplecounter_version", metadata, _key("number"))
positions = Table(  # how far each log has been read
    "positions", metadata, _key("source", Name), Column("log", Name), Column("n", Integer)
)
crossings = Table(
    "crossings", metadata, _key("source", Name), _key("log", Name), _key("number"),
    Column("line", Name), Column("revision", Integer), Column("direction", String(3)), Column("track", Name),
    Column("time_s", Double), Column("complete", Boolean),
)  # fmt: skip
visits = Table(
    "visits", metadata, _key("source", Name), _key("log", Name), _key("number"),
    Column("zone", Name), Column("revision", Integer), Column("track", Name),
    Column("entered_s", Double), Column("left_s", Double), Column("dwell_s", Double),
)  # fmt: skip
minutes = Table(  # of the source itself, and of each of its lines and zones; several rows of one minute add up
    "minutes", metadata, _key("source", Name), _key("log", Name), _key("n"), _key("kind", String(6)),
    _key("name", Name), Column("start_s", BigInteger), Column("observed_s", Double), Column("complete_s", Double),
    Column("ins", Integer), Column("outs", Integer), Column("total_ins", Integer), Column("total_outs", Integer),
    Column("people_mean", Double), Column("people_max", Integer),
)  # fmt: skip
shapes = Table(  # revisions of lines and zones
    "shapes", metadata, _key("source", Name), _key("log", Name), _key("n"),
    Column("name", Name), Column("revision", Integer), Column("time_s", Double), Column("settings", Text),
)  # fmt: skip
corrections = Table(  # of areas: what lines cannot know
    "corrections", metadata, _key("area", Name), _key("number"), _key("time_s", Double),
    Column("kind", Name), Column("before", Integer), Column("after", Integer), Column("drift", Integer),
    Column("base_ins", Integer), Column("base_outs", Integer), Column("corrected", Integer),
    Column("lines", Text), Column("note", Text),
)  # fmt: skip
gaps = Table(  # records that the log had lost before they were read
    "gaps", metadata, _key("source", Name), _key("log", Name), _key("first"), Column("last", Integer)
)
Index("crossings_by_time", crossings.c.time_s)
Index("visits_by_time", visits.c.left_s)
Index("minutes_by_time", minutes.c.start_s)

RETENTION = {"crossings": crossings.c.time_s, "visits": visits.c.left_s, "minutes": minutes.c.start_s}
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def connect(url: str) -> Engine:
    """A database, which need not be there yet. Raises AppError for an invalid URL or a driver that is not installed."""
    try:
        parsed = make_url(url)
        options: dict[str, Any] = {}
        if parsed.get_backend_name() == "postgresql":
            options = {"connect_args": {"connect_timeout": CONNECT_S}, "pool_pre_ping": True}
        engine = create_engine(parsed, **options)
    except (ArgumentError, NoSuchModuleError):
        raise AppError(
            "history.database is not the URL of a database: use sqlite:// or postgresql+psycopg://."
        ) from None
    except ModuleNotFoundError as error:
        raise AppError(f"{error.name} is not installed: pip install 'peoplecounter[postgresql]'.") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _sqlite_pragmas)
    return engine


def prepare(engine: Engine) -> None:
    """Creates missing tables. Raises AppError for a database of another version, SQLAlchemyError if it is away."""
    with engine.begin() as connection:
        metadata.create_all(connection)
        found = connection.execute(select(version.c.number)).scalar()
        if found is None:
            connection.execute(insert(version).values(number=VERSION))
        else:
            _check_version(engine, found)


def _check_version(engine: Engine, found: int | None) -> None:
    if found != VERSION:
        raise AppError(
            f"The history {shown(engine)} has tables of version {found}, not {VERSION}: use another database."
        )


def add(connection: Connection, table: Table, rows: list[dict]) -> None:
    """Inserts rows, apart from those that are there already."""
    if rows:
        connection.execute(INSERTS[connection.dialect.name](table).on_conflict_do_nothing(), rows)


def reason(error: SQLAlchemyError) -> str:
    """What a database says, in one line, without the statement and without a password."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def open_existing(url: str) -> Engine:
    """A history to read. Raises AppError when there is none."""
    engine = connect(url)
    path = engine.url.database
    none = f"There is no history in {path or shown(engine)}: it is written while a group runs with data_dir."
    if engine.dialect.name == "sqlite" and path and not Path(path).exists():
        raise AppError(none, NO_INPUT)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table(version.name):
                raise AppError(none, NO_INPUT)
            _check_version(engine, connection.execute(select(version.c.number)).scalar())
    except SQLAlchemyError as error:
        raise AppError(f"The history {shown(engine)} cannot be read: {reason(error)}.", SOFTWARE) from None
    return engine


def shown(engine: Engine) -> str:
    """The URL of a database, without its password."""
    return engine.url.render_as_string()


def _sqlite_pragmas(connection, record) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
