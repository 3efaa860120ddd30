-- Does what writing a user takes, where no user is, and leaves nothing behind.
--
-- KEYS: one that no user has. ARGV: seconds to keep.
local key = KEYS[1]
redis.call('SET', key, '0', 'EX', ARGV[1])
redis.call('GETRANGE', key, 0, 31)
redis.call('MGET', key)
redis.call('GET', key)
redis.call('TTL', key)
redis.call('DEL', key)
return 0
