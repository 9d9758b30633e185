import java.io.BufferedReader;
import java.io.InputStreamReader;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.leader.LeaderLatchListener;
import org.apache.curator.retry.RetryForever;

/** A candidate of Curator's LeaderLatch: it prints each change, and answers the lines that it reads. */
class CuratorLatch {
    public static void main(String[] arguments) throws Exception {
        CuratorFramework client = CuratorFrameworkFactory.newClient(arguments[0], new RetryForever(100));
        client.start();
        LeaderLatch latch = new LeaderLatch(client, arguments[1], arguments[2]);
        latch.addListener(new LeaderLatchListener() {
            public void isLeader() {
                System.out.println("leads");
            }

            public void notLeader() {
                System.out.println("leads no more");
            }
        });
        latch.start();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            switch (line) {
                case "leader" -> System.out.println(latch.getLeader().getId());
                case "close" -> {
                    latch.close();
                    System.out.println("closed");
                }
                default -> throw new IllegalArgumentException(line);
            }
        }
    }
}
