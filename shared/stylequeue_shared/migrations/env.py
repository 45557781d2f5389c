"""What Alembic runs, on the connection that `migrate` gives it."""

from alembic import context

from stylequeue_shared.models import Base

connection = context.config.attributes["connection"]
# SQLite changes a table by copying it.
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
