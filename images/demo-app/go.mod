module session-proxy/images/demo-app

go 1.26.0
