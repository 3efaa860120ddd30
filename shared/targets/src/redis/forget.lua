-- Removes what is kept of a user in exactly one version, which can't be: what is delivered next is taken.
--
-- KEYS: the document, the tombstone. ARGV: the version.
for _, key in ipairs(KEYS) do
  local head = redis.call('GETRANGE', key, 0, 31)
  local version = string.match(head, '^{"version":(%d+)') or string.match(head, '^%d+$')
  if version == ARGV[1] then redis.call('DEL', key) end
end
