-- Reply: `levels`, then the fields of the day and of the month

drop_expired()
open_periods()
expire_leases()
return {levels(), redis.call('HGETALL', DAY), redis.call('HGETALL', MONTH)}
