-- usersync: the outbox of public.users, for PostgreSQL 14 or newer.
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
  IF to_regclass('"public"."user_outbox"') IS NULL THEN
    CREATE TABLE "public"."user_outbox" (
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
    EXECUTE format('ALTER TABLE "public"."user_outbox" ALTER COLUMN id RESTART WITH %s',
      (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    CREATE INDEX user_outbox_unpublished ON "public"."user_outbox" (id) WHERE state = 0;
    CREATE INDEX user_outbox_failed ON "public"."user_outbox" (id) WHERE state = 2;
  END IF;
END
$usersync$;

-- With the rights of whoever makes it: those who change users need none on the outbox.
CREATE OR REPLACE FUNCTION "public"."user_outbox_capture"() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $usersync$
BEGIN
  IF current_setting('usersync.apply', true) IN ('on', 'true', '1') THEN
    RETURN NULL;
  END IF;
  IF TG_OP = 'INSERT' THEN
    INSERT INTO "public"."user_outbox" (user_id, event, payload)
      VALUES (NEW."id"::text, 'user.created', json_build_object('user_id', NEW."id", 'username', NEW."username"::text, 'email', NEW."email"::text, 'status', NEW."status"::text)::text);
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO "public"."user_outbox" (user_id, event, payload)
      VALUES (OLD."id"::text, 'user.deleted', json_build_object('user_id', OLD."id")::text);
  ELSIF OLD."id"::text IS DISTINCT FROM NEW."id"::text THEN
    INSERT INTO "public"."user_outbox" (user_id, event, payload)
      VALUES (OLD."id"::text, 'user.deleted', json_build_object('user_id', OLD."id")::text);
    INSERT INTO "public"."user_outbox" (user_id, event, payload)
      VALUES (NEW."id"::text, 'user.created', json_build_object('user_id', NEW."id", 'username', NEW."username"::text, 'email', NEW."email"::text, 'status', NEW."status"::text)::text);
  ELSIF OLD."username"::text IS DISTINCT FROM NEW."username"::text OR OLD."email"::text IS DISTINCT FROM NEW."email"::text OR OLD."status"::text IS DISTINCT FROM NEW."status"::text THEN
    INSERT INTO "public"."user_outbox" (user_id, event, payload, previous)
      VALUES (NEW."id"::text, CASE WHEN OLD."username"::text IS DISTINCT FROM NEW."username"::text OR OLD."email"::text IS DISTINCT FROM NEW."email"::text THEN 'user.updated' ELSE 'user.status_changed' END, json_build_object('user_id', NEW."id", 'username', NEW."username"::text, 'email', NEW."email"::text, 'status', NEW."status"::text)::text, NULL);
  ELSE
    RETURN NULL;
  END IF;
  PERFORM pg_notify('user_outbox', '');
  RETURN NULL;
END
$usersync$;

DROP TRIGGER IF EXISTS user_outbox ON "public"."users";
CREATE TRIGGER user_outbox AFTER INSERT OR UPDATE OR DELETE ON "public"."users"
  FOR EACH ROW EXECUTE FUNCTION "public"."user_outbox_capture"();
COMMIT;
