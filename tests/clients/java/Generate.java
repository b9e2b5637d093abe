// Asks for images as LangChain4j and Spring AI do over Java's own HTTP client:
//
//     java Generate.java http://127.0.0.1:8080/v1 KEY PROMPT…
//
// Each prompt is sent twice: its body of a known length, then in chunks. Over plain HTTP the client
// offers HTTP/2 with the first request on a connection. A line per answer: version, status, body.
import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;

class Generate {
  public static void main(String[] arguments) throws Exception {
    var client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10)).build();
    for (var prompt : Arrays.asList(arguments).subList(2, arguments.length)) {
      for (var body : bodies(prompt)) {
        var request = HttpRequest.newBuilder(URI.create(arguments[0] + "/images/generations"))
            .timeout(Duration.ofSeconds(60))
            .header("Authorization", "Bearer " + arguments[1])
            .header("Content-Type", "application/json")
            .POST(body)
            .build();
        var answer = client.send(request, BodyHandlers.ofString());
        System.out.println(answer.version() + " " + answer.statusCode() + " " + answer.body());
      }
    }
  }

  static List<BodyPublisher> bodies(String prompt) {
    var json = "{\"model\": \"dall-e-3\", \"prompt\": \"" + prompt + "\", \"n\": 1}";
    var bytes = json.getBytes(StandardCharsets.UTF_8);
    return List.of(
        BodyPublishers.ofByteArray(bytes),
        BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(bytes)));
  }
}
