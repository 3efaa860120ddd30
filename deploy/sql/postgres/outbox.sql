-- usersync: the outbox of public.users, for PostgreSQL 14 or newer.
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
  IF to_regclass('"public"."user_outbox"') IS NULL THEN
    CREATE TABLE "public"."user_outbox" (
      id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      user_id      text NOT NULL,
      event        text NOT NULL, -- I, U or D; or the type of the payload
      payload      text,
      previous     text,
      state        smallint NOT NULL DEFAULT 0, -- 0 waits, 1 published, 2 failed
      error        text,
      created_at   timestamptz NOT NULL DEFAULT statement_timestamp(),
      published_at timestamptz,
      tx           bigint -- the transaction
    ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
    EXECUTE format('ALTER TABLE "public"."user_outbox" ALTER COLUMN id RESTART WITH %s',
      (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    CREATE INDEX user_outbox_unpublished ON "public"."user_outbox" (id) WHERE state = 0;
    CREATE INDEX user_outbox_failed ON "public"."user_outbox" (id) WHERE state = 2;
  END IF;
  -- One of an older version; rows that wait are published as they stand.
  IF NOT EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('"public"."user_outbox"') AND attname = 'tx') THEN
    ALTER TABLE "public"."user_outbox" ADD COLUMN tx bigint, ALTER COLUMN created_at SET DEFAULT statement_timestamp();
  END IF;
  -- Which outbox this is: nobody can guess it, and one made anew is another one.
  IF to_regclass('"public"."user_outbox_about"') IS NULL THEN
    CREATE TABLE "public"."user_outbox_about" (
      epoch    text PRIMARY KEY,
      first    bigint NOT NULL, -- rows before it were written by an older version
      approved bigint NOT NULL DEFAULT 0, -- up to here, any number of users may be deleted
      format   smallint NOT NULL DEFAULT 2
    );
  END IF;
  IF NOT EXISTS (SELECT 1 FROM "public"."user_outbox_about") THEN
    INSERT INTO "public"."user_outbox_about" (epoch, first)
      SELECT gen_random_uuid()::text, COALESCE(max(id), 0) + 1 FROM "public"."user_outbox";
  END IF;
END
$usersync$;

-- With the rights of whoever makes it: those who change users need none on the outbox. Every name says its schema, so nobody's
-- search_path matters; to set one here would cost each row a fifth more.
CREATE OR REPLACE FUNCTION "public"."user_outbox_capture"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $usersync$
BEGIN
  IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' AND OLD."id" OPERATOR(pg_catalog.=) NEW."id" THEN
    INSERT INTO "public"."user_outbox" (user_id, event, tx) VALUES (NEW."id"::pg_catalog.text, 'U', pg_catalog.txid_current());
  ELSIF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
    -- Without a transaction: who takes the id that another gives up is somebody else.
    IF OLD."id" IS NOT NULL THEN
      INSERT INTO "public"."user_outbox" (user_id, event) VALUES (OLD."id"::pg_catalog.text, 'D');
    END IF;
    IF NEW."id" IS NOT NULL THEN
      INSERT INTO "public"."user_outbox" (user_id, event) VALUES (NEW."id"::pg_catalog.text, 'I');
    END IF;
  ELSIF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
    IF OLD."id" IS NOT NULL THEN
      INSERT INTO "public"."user_outbox" (user_id, event, tx) VALUES (OLD."id"::pg_catalog.text, 'D', pg_catalog.txid_current());
    END IF;
  ELSIF NEW."id" IS NOT NULL THEN
    INSERT INTO "public"."user_outbox" (user_id, event, tx) VALUES (NEW."id"::pg_catalog.text, 'I', pg_catalog.txid_current());
  END IF;
  RETURN NULL;
END
$usersync$;

-- Says that there is something. Who writes to a partition by its name is found by a look.
CREATE OR REPLACE FUNCTION "public"."user_outbox_notify"() RETURNS trigger LANGUAGE plpgsql AS $usersync$
BEGIN
  PERFORM pg_catalog.pg_notify('user_outbox', '');
  RETURN NULL;
END
$usersync$;

DROP TRIGGER IF EXISTS user_outbox ON "public"."users";
CREATE TRIGGER user_outbox AFTER INSERT OR UPDATE OR DELETE ON "public"."users" FOR EACH ROW
  WHEN (COALESCE(current_setting('usersync.apply', true), '') NOT IN ('on', 'true', '1'))
  EXECUTE FUNCTION "public"."user_outbox_capture"();
DROP TRIGGER IF EXISTS user_outbox_notify ON "public"."users";
CREATE TRIGGER user_outbox_notify AFTER INSERT OR UPDATE OR DELETE ON "public"."users" FOR EACH STATEMENT
  WHEN (COALESCE(current_setting('usersync.apply', true), '') NOT IN ('on', 'true', '1'))
  EXECUTE FUNCTION "public"."user_outbox_notify"();
COMMIT;
