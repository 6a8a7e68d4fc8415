//! A server with the standard library: one thread per connection.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    thread,
};

fn answer(stream: TcpStream, release: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let (status, body) = match request.split(' ').nth(1) {
        Some("/") => ("200 OK", format!("Hello from Rust\nrelease {release}\n")),
        _ => ("404 Not Found", String::from("Not found\n")),
    };
    let body = if request.starts_with("HEAD ") { String::new() } else { body };
    let length = body.len();
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

fn main() -> std::io::Result<()> {
    let release = env::var("LARDER_RELEASE").unwrap_or_else(|_| String::from("unknown"));
    let port = env::var("PORT").unwrap_or_else(|_| String::from("8080"));
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    println!("listening on {port}");
    for stream in listener.incoming() {
        let release = release.clone();
        thread::spawn(move || {
            if let Err(error) = stream.and_then(|stream| answer(stream, &release)) {
                eprintln!("{error}");
            }
        });
    }
    Ok(())
}
