-- usersync: the outbox of {table_shown}, for PostgreSQL 14 or newer.
--
-- Every change of a user leaves a note in user_outbox, in the transaction that makes it: who changed, and how. usersync-gateway
-- reads the note, then the row, and publishes it. Run this again to renew the trigger; `usersync-scheduler outbox install`
-- makes it for other tables. A transaction that applies what came from usersync says so, and nothing is noted for it:
-- SET LOCAL usersync.apply = 'on'. See docs/OUTBOX.md.

BEGIN;
SET LOCAL lock_timeout = '10s';

-- Ids begin at the microseconds of now, so that none comes again after the outbox was removed and made anew. A service may
-- write rows of its own, with the payload of an event.
DO $usersync$
BEGIN
  IF to_regclass('{outbox_quoted}') IS NULL THEN
    CREATE TABLE {outbox} (
      id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      user_id      text NOT NULL,
      event        text NOT NULL, -- I, U or D; or the type of the payload
      payload      text,
      previous     text,
      state        smallint NOT NULL DEFAULT 0, -- 0 waits, 1 published, 2 failed
      error        text,
      created_at   timestamptz NOT NULL DEFAULT statement_timestamp(),
      published_at timestamptz,
      tx           bigint -- not used any more: no statement deletes and inserts one user
    ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
    EXECUTE format('ALTER TABLE {outbox_format} ALTER COLUMN id RESTART WITH %s',
      (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    CREATE INDEX user_outbox_unpublished ON {outbox} (id) WHERE state = 0;
    CREATE INDEX user_outbox_failed ON {outbox} (id) WHERE state = 2;
  END IF;
  -- One of an older version; rows that wait are published as they stand.
  IF NOT EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('{outbox_quoted}') AND attname = 'tx') THEN
    ALTER TABLE {outbox} ADD COLUMN tx bigint, ALTER COLUMN created_at SET DEFAULT statement_timestamp();
  END IF;
  -- Which outbox this is: nobody can guess it, and one made anew is another one.
  IF to_regclass('{about_quoted}') IS NULL THEN
    CREATE TABLE {about} (
      epoch    text PRIMARY KEY,
      first    bigint NOT NULL, -- rows before it were written by an older version
      approved bigint NOT NULL DEFAULT 0, -- up to here, any number of users may be deleted
      format   smallint NOT NULL DEFAULT 2
    );
  END IF;
  IF NOT EXISTS (SELECT 1 FROM {about}) THEN
    INSERT INTO {about} (epoch, first)
      SELECT gen_random_uuid()::text, COALESCE(max(id), 0) + 1 FROM {outbox};
  END IF;
END
$usersync$;

-- With the rights of whoever makes it: those who change users need none on the outbox. Every name says its schema, so nobody's
-- search_path matters; to set one here would cost each row a fifth more. No change of the table makes a write fail here: where
-- the id's column was renamed, or has another type than this session knew, it is found by its key.
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $usersync$
<<usersync_4>>
DECLARE
  old_id pg_catalog.text;
  new_id pg_catalog.text;
  named pg_catalog.text;
BEGIN
  -- It would write over what the application has changed and nobody has heard of yet.
  IF pg_catalog.current_setting('usersync.blind', true) OPERATOR(pg_catalog.=) 'on' THEN
    -- A trigger of another table that it writes to is not meant.
    IF pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.=) 1 THEN
      RAISE EXCEPTION USING ERRCODE = '42U99', MESSAGE = 'a worker writes here that doesn''t see user_outbox';
    END IF;
    RETURN NULL;
  END IF;
  BEGIN
    IF TG_OP OPERATOR(pg_catalog.<>) 'INSERT' THEN
      old_id := OLD.{id}::pg_catalog.text;
    END IF;
    IF TG_OP OPERATOR(pg_catalog.<>) 'DELETE' THEN
      new_id := NEW.{id}::pg_catalog.text;
    END IF;
  EXCEPTION WHEN OTHERS THEN
    named := (SELECT a.attname FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid AND a.attnum OPERATOR(pg_catalog.=) i.indkey[0]
      WHERE i.indexrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(TG_ARGV[0]));
    IF TG_OP OPERATOR(pg_catalog.<>) 'INSERT' THEN
      old_id := pg_catalog.to_jsonb(OLD) OPERATOR(pg_catalog.->>) named;
    END IF;
    IF TG_OP OPERATOR(pg_catalog.<>) 'DELETE' THEN
      new_id := pg_catalog.to_jsonb(NEW) OPERATOR(pg_catalog.->>) named;
    END IF;
  END;
  IF old_id COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) new_id THEN
    INSERT INTO {outbox} (user_id, event) VALUES (new_id, 'U');
  ELSE
    IF old_id IS NOT NULL THEN
      INSERT INTO {outbox} (user_id, event) VALUES (old_id, 'D');
    END IF;
    IF new_id IS NOT NULL THEN
      INSERT INTO {outbox} (user_id, event) VALUES (new_id, 'I');
    END IF;
  END IF;
  RETURN NULL;
END
$usersync$;

-- TRUNCATE deletes everybody.
CREATE OR REPLACE FUNCTION {truncate}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $usersync$
<<usersync_4>>
DECLARE
  named pg_catalog.text := (SELECT a.attname FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid AND a.attnum OPERATOR(pg_catalog.=) i.indkey[0]
    WHERE i.indexrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(TG_ARGV[0]));
BEGIN
  IF named IS NOT NULL THEN
    EXECUTE pg_catalog.format('INSERT INTO {outbox_format} (user_id, event)
      SELECT %1$I::pg_catalog.text, ''D'' FROM %2$I.%3$I WHERE %1$I IS NOT NULL', named, TG_TABLE_SCHEMA, TG_TABLE_NAME);
  END IF;
  RETURN NULL;
END
$usersync$;

-- Says that there is something. Who writes to a partition by its name is found by a look.
CREATE OR REPLACE FUNCTION {notify}() RETURNS trigger LANGUAGE plpgsql AS $usersync$
BEGIN
  PERFORM pg_catalog.pg_notify('user_outbox', '');
  RETURN NULL;
END
$usersync$;

DROP TRIGGER IF EXISTS user_outbox ON {table};
DROP TRIGGER IF EXISTS user_outbox_truncate ON {table};
DROP TRIGGER IF EXISTS user_outbox_notify ON {table};
DO $usersync$
DECLARE
  key text := (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = to_regclass('{table_quoted}') AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL
      AND a.attname = '{id_text}' ORDER BY i.indisprimary DESC LIMIT 1);
BEGIN
  EXECUTE $trigger$CREATE TRIGGER user_outbox AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW
    WHEN (COALESCE(current_setting('usersync.apply', true), '') NOT IN ('on', 'true', '1')
      OR current_setting('usersync.blind', true) = 'on')
    EXECUTE FUNCTION {function}($trigger$ || COALESCE(quote_literal(key), '') || ')';
  EXECUTE $trigger$CREATE TRIGGER user_outbox_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT
    WHEN (COALESCE(current_setting('usersync.apply', true), '') NOT IN ('on', 'true', '1'))
    EXECUTE FUNCTION {truncate}($trigger$ || COALESCE(quote_literal(key), '') || ')';
END
$usersync$;
-- A transaction that says something can't be prepared (two-phase commit): where some may be, the relay looks for itself.
DO $usersync$
BEGIN
  IF current_setting('max_prepared_transactions') = '0' THEN
    CREATE TRIGGER user_outbox_notify AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT
      WHEN (COALESCE(current_setting('usersync.apply', true), '') NOT IN ('on', 'true', '1'))
      EXECUTE FUNCTION {notify}();
  END IF;
END
$usersync$;
COMMIT;
