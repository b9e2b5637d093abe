-- For wrk: wrk -s ask.lua URL -- KEY BODY [FIRST SEED]
-- A body with SEED in it is another one each time. Prints one line of JSON at the end.

local key, body, seed, fixed

function init(args)
  key, body, seed = args[1], args[2], tonumber(args[3] or '0')
  wrk.headers['Authorization'] = 'Bearer ' .. key
  wrk.headers['Content-Type'] = 'application/json'
  if not string.find(body, 'SEED', 1, true) then fixed = wrk.format('POST', nil, nil, body) end
end

function request()
  if fixed then return fixed end
  seed = seed + 1
  return wrk.format('POST', nil, nil, (string.gsub(body, 'SEED', seed)))
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %f, "refused": %d, "broken": %d, "p50_us": %d, "p99_us": %d}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
