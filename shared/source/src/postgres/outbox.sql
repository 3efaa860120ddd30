-- usersync: the outbox of {table_shown}, for PostgreSQL 14 or newer.
--
-- Every change of a user is written to user_outbox in the transaction that makes it, and usersync-gateway
-- publishes it from there. Run it again to renew the trigger; `usersync-scheduler outbox install` makes it
-- for other tables and columns. A transaction that applies what came from usersync says so, and nothing is
-- written for it: SET LOCAL usersync.apply = 'on'. See docs/OUTBOX.md.

BEGIN;
SET LOCAL lock_timeout = '10s';

-- Ids begin at the microseconds of now, so that none comes again after the outbox was removed and made anew.
DO $usersync$
BEGIN
  IF to_regclass('{outbox_quoted}') IS NULL THEN
    CREATE TABLE {outbox} (
      id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      user_id      text NOT NULL,
      event        text NOT NULL,
      payload      text,
      previous     text,
      state        smallint NOT NULL DEFAULT 0, -- 0 waits, 1 published, 2 failed
      error        text,
      created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
      published_at timestamptz
    ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
    EXECUTE format('ALTER TABLE {outbox_quoted} ALTER COLUMN id RESTART WITH %s',
      (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    CREATE INDEX user_outbox_unpublished ON {outbox} (id) WHERE state = 0;
    CREATE INDEX user_outbox_failed ON {outbox} (id) WHERE state = 2;
  END IF;
END
$usersync$;

-- With the rights of whoever makes it: those who change users need none on the outbox.
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $usersync$
BEGIN
  IF current_setting('usersync.apply', true) IN ('on', 'true', '1') THEN
    RETURN NULL;
  END IF;
  IF TG_OP = 'INSERT' THEN
    INSERT INTO {outbox} (user_id, event, payload)
      VALUES ({new_id_text}, 'user.created', {new_document});
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO {outbox} (user_id, event, payload)
      VALUES ({old_id_text}, 'user.deleted', {old_gone});
  ELSIF {id_changed} THEN
    INSERT INTO {outbox} (user_id, event, payload)
      VALUES ({old_id_text}, 'user.deleted', {old_gone});
    INSERT INTO {outbox} (user_id, event, payload)
      VALUES ({new_id_text}, 'user.created', {new_document});
  ELSIF {changed} THEN
    INSERT INTO {outbox} (user_id, event, payload, previous)
      VALUES ({new_id_text}, CASE WHEN {more_changed} THEN 'user.updated' ELSE 'user.status_changed' END, {new_document}, {previous});
  ELSE
    RETURN NULL;
  END IF;
  PERFORM pg_notify('user_outbox', '');
  RETURN NULL;
END
$usersync$;

DROP TRIGGER IF EXISTS user_outbox ON {table};
CREATE TRIGGER user_outbox AFTER INSERT OR UPDATE OR DELETE ON {table}
  FOR EACH ROW EXECUTE FUNCTION {function}();
COMMIT;
