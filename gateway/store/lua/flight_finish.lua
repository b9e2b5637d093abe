-- Keep a result for everyone who may find it.
-- ARGV  2 id, 3 leader, 4 result, 5 life ms, 6 keep ms, 7 cache key ('': none), 8 cache ms

local cache_key, cache_ms = ARGV[7], tonumber(ARGV[8])

local one = open(ARGV[2])
if not one or one.leader ~= ARGV[3] or one.phase == 'done' then return standing(one, ARGV[3]) end

one.phase, one.ended, one.lease = 'done', now_ms, 0
one.dies, one.kept = now_ms + tonumber(ARGV[5]), now_ms + tonumber(ARGV[6])
if cache_key ~= '' then
  local name = named('c', cache_key)
  if call('HGET', name, 'running') == one.id then call('HDEL', name, 'running') end
  if cache_ms > 0 then
    one.cached = now_ms + cache_ms
    call('HSET', name, 'done', one.id)
    last(name, cache_ms)
  end
end
drop_parts(one)
save(one, 'payload', ARGV[4])
on_the_shelf(one)
drop_expired(10)
return 'kept'
