-- A request was answered by an error that SDKs retry.
-- ARGV  2 adoption, 3 request

excuse(ARGV[2], ARGV[3])
return 1
