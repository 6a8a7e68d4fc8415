# frozen_string_literal: true

release = ENV.fetch('LARDER_RELEASE', 'unknown')

run lambda { |env|
  headers = { 'content-type' => 'text/plain; charset=utf-8' }
  if env['PATH_INFO'] == '/'
    [200, headers, ["Hello from Ruby\nrelease #{release}\n"]]
  else
    [404, headers, ["Not found\n"]]
  end
}
