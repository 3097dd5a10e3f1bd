-- What wrk sends: the lines of a file as bodies, in an order of its own for each thread; and what it reports: a line of JSON.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
  thread:set("number", #threads)
end

function init(args)
  local path = args[1]
  local bodies = {}
  for line in io.lines(args[2]) do
    table.insert(bodies, wrk.format("POST", path, { ["content-type"] = "application/json" }, line))
  end
  math.randomseed(number)
  requests = bodies
  answered, busy, others = 0, 0, 0
end

function request()
  return requests[math.random(#requests)]
end

function response(status, headers)
  if status == 200 then
    answered = answered + 1
  elseif status == 429 and headers["retry-after"] then
    busy = busy + 1
  else
    others = others + 1
  end
end

function done(summary, latency)
  local total = { answered = 0, busy = 0, others = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(total) do
      total[name] = total[name] + thread:get(name)
    end
  end
  local errors = summary.errors
  print(string.format(
    '{"answered": %d, "busy": %d, "others": %d, "broken": %d, "seconds": %.3f, "p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}',
    total.answered, total.busy, total.others, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3))
end
